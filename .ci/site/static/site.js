document.addEventListener('DOMContentLoaded', () => {
  const box = document.createElement('dialog'); box.className = 'fe-zoom';
  const big = document.createElement('img'); box.append(big); document.body.append(box);
  box.addEventListener('click', () => box.close());
  for (const img of document.querySelectorAll('.cell_output img')) {
    if (img.closest('.fe-ba,.fe-sw,a')) continue;
    img.classList.add('fe-zoomable'); img.tabIndex = 0;
    const open = () => {
      big.src = img.src; big.alt = img.alt;
      const times = Math.max(1, Math.floor(Math.min(innerWidth*.95/img.naturalWidth, innerHeight*.9/img.naturalHeight)));
      big.width = img.naturalWidth*times; box.showModal();
    };
    img.addEventListener('click', open);
    img.addEventListener('keydown', e => { if (e.key === 'Enter') open(); });
  }
  for (const cell of document.querySelectorAll('.cell_output td, .cell_output th'))
    if (cell.textContent.length < 26 && !cell.querySelector('img')) cell.classList.add('fe-short');
});
